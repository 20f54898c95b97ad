#define QPASS_NAME weight_panel_bf16
#include "weight_panel.h"
