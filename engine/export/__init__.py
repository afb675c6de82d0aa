"""Labels as training sets: COCO, YOLO, WebDataset or Parquet files."""
