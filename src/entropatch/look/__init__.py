"""Looking at what a model's attention does to images, as arrays on the grid of patches."""
