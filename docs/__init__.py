"""The project's documents, and the script that draws their picture of the package."""
