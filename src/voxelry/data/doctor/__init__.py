"""What is wrong with a folder of data, before a training finds it."""
