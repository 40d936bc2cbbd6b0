"""Image files: headers, decoding to RGB, and how pixels become what a model takes."""
