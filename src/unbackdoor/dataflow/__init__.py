"""What a network computes, call by call: what becomes of a zero, which norm reads which layer, what a layer is for."""
