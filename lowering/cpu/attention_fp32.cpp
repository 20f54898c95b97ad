#define QPASS_NAME attention_fp32
#include "attention.h"
