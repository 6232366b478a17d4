from deq_init.theory.jacobians import *
