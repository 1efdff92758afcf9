"""Quality, variety and novelty of images: distances between sets, and the features they are taken in."""
