"""What is compared: a module for each recorded file, in the order they are run."""
