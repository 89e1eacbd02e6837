"""`llamafactory-cli plan`: what a run will need and how long it will take, told before it starts."""
