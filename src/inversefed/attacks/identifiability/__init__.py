"""What an update determines, counted before any attack: equations, unknowns, and what no attack can recover."""
