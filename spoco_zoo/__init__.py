"""Instance segmentation from a few labelled objects."""
