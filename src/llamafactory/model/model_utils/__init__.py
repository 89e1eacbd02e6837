"""One concern of a loaded model per file; each is a function from a model to the same model."""
