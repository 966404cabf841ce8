"""What others have learned: weight files read safely, converted to our trees and back, and where they are published."""
