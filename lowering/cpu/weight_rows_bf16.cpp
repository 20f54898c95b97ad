#define QPASS_NAME weight_rows_bf16
#include "weight_rows.h"
