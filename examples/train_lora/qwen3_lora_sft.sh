#!/usr/bin/env bash
# The same kind of run with flags instead of a YAML file.
set -eu

llamafactory-cli train \
    --model_name_or_path Qwen/Qwen3-4B-Instruct-2507 \
    --stage sft \
    --do_train \
    --finetuning_type lora \
    --lora_rank 8 \
    --lora_target all \
    --dataset identity,alpaca_en_demo \
    --cutoff_len 2048 \
    --output_dir saves/qwen3-4b/lora/sft \
    --per_device_train_batch_size 1 \
    --gradient_accumulation_steps 8 \
    --learning_rate 1e-4 \
    --num_train_epochs 3.0 \
    --lr_scheduler_type cosine \
    --warmup_ratio 0.1 \
    --logging_steps 10 \
    --save_steps 500 \
    --plot_loss
