"""What the build of the distribution does beyond copying Python files."""
