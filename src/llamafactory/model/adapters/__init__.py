"""The ways of tuning a model, one file a kind; hparams/methods.toml is their table, ../adapter.py puts them on."""
