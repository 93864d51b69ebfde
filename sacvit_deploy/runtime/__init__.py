"""The online half: pictures in, results out, with numpy and one inference runtime."""
