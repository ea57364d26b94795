"""What install.py consists of. Standard library only, and no syntax newer than Python 3.8."""
