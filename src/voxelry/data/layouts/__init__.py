"""How people lay out their folders, and the cases that are found in one."""
