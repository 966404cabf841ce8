"""What a network is: chains of named layers, one file per paper."""
