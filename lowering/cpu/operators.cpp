// One translation unit for all that includes torch: reading its headers takes longer than compiling every kernel.
#include "library.h"
#include "ops_attention.h"
#include "ops_cache.h"
#include "ops_int8.h"
#include "ops_integer_attention.h"
#include "ops_integer_rows.h"
#include "ops_integer_linear.h"
#include "ops_weight.h"
