"""How large an organ is."""
