"""Search training images for patches that act as triggers."""
