"""Prediction with a trained head: sliding windows, mosaics, masks, GeoJSON, pyramidal TIFF."""
