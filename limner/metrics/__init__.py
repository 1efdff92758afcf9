"""How good, how varied, how new: distances between sets of images, and the features that they are taken in."""
