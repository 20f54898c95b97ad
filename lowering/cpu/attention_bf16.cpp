#define QPASS_NAME attention_bf16
#include "attention.h"
