"""What is compared of the plain-transformer family: a module for each kind of recorded file."""
