"""Tests: tables, equivalence, whole runs through the real front door, architecture."""
