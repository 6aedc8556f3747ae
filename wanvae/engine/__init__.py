"""Machinery shared by the video and the motion model; it knows neither."""
