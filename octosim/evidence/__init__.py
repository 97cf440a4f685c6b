"""What a run did, shown: differences of two runs, overflow by register, files to check hardware against."""
