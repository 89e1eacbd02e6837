"""Names that several layers share: the label that losses skip, and the files a run leaves in output_dir."""

IGNORE_INDEX = -100

DATA_REPORT = "data_report.json"
DATASET_INFO = "dataset_info.json"
ENVIRONMENT_FILE = "environment.json"
PREDICTIONS = "generated_predictions.jsonl"
RESOLVED_CONFIG = "resolved_config.yaml"
TRAINER_LOG = "trainer_log.jsonl"
