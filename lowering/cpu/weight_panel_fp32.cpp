#define QPASS_NAME weight_panel_fp32
#include "weight_panel.h"
