"""Every operation in plain torch: obviously right, runs anywhere, and the oracle of every other backend."""
