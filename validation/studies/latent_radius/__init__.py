"""How wrong a start may be: success of latent refinement and of what it is compared with, by the starting error."""
