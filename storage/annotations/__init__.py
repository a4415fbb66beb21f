"""Pictures with annotations as evaluations read them where they lie: masks and depth beside pictures, SPair-71k, COCO."""
