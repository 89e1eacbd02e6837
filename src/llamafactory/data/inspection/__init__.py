"""The command `data`: what a careful person would look at before renting a GPU. Nothing here changes a row."""
