#define QPASS_NAME weight_rows_fp32
#include "weight_rows.h"
