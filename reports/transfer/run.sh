#!/bin/sh
# The whole report, from CIFAR-10 (octosim's data folder) to its tables: run.sh FOLDER [python]
set -e
folder=$1 python=${2:-python} here=$(dirname "$0")
"$python" "$here/pretrain.py" "$folder" 20 60
"$python" "$here/finetune.py" "$folder"
for choice in "--train-last 1" "--train-last 6" ""; do
    # shellcheck disable=SC2086
    "$python" -m octosim bench --model "$folder/net" --data "$folder/new" $choice --batch-size 50 --threads 1 --against torch --memory
done
"$python" -m octosim cost --model "$folder/net" --profile pi4 --compare pi5,jetson,zero2w --batch-size 50 --sweep trainable:1,6,all
"$python" -m octosim cost --model "$folder/net" --profile pi4 --compare pi5,jetson,zero2w --batch-size 50 --sweep trainable \
    --csv "$here/costs.csv" --plot "$here/costs.svg"
