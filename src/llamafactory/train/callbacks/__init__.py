"""What watches a run: the log file, the progress bar, signals, early stopping."""
