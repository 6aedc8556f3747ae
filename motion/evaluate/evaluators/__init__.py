"""The published evaluators of HumanML3D and KIT, and the figures that papers compute with them."""
