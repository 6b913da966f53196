"""A network, a data set and a method that live outside of sparsign: an example, and what the tests install."""
