"""From a folder of images and a big model to a small, verified, deployable student."""
