"""The engine against itself: the same requests on two ways that must give the same answer."""
