-- Run once, by the image of Postgres, when its volume is empty.
CREATE DATABASE mlflow OWNER dagster;
