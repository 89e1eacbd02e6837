"""The data panel without its widgets: rows as HTML, figures as HTML, and files that are checked and registered."""
