"""What a method is given: images, a working copy, tuning, the channels of the norms."""
