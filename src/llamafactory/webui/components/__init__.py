"""The tabs of the board: `create_<tab>_tab(engine)` makes its elements, connects them and returns them by name."""
