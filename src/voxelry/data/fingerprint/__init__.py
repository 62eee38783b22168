"""What a data set is made of, told by headers and sampled windows: see `take.take_fingerprint`."""
