"""Sources, decoding, transforms, mixing, keyed sampling and loading of labelled images."""
