"""The chat box without its widgets: dialogues, loaded models, streams, and how turns are shown."""
