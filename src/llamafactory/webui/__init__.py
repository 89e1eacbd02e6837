"""The board: the same configuration as in a YAML file, chosen in a browser. Only modules in here import gradio."""
