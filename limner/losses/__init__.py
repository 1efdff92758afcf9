"""Losses as plain functions of tensors; which family uses which is the family's business."""
